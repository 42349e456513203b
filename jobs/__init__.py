"""Entry points for `ray job submit`: parse, call, print one line of JSON."""
