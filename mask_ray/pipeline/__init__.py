"""From a pile of photos to a served model, in stages that are each done once."""
