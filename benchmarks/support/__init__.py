"""What several benchmarks share: a Ray of their own, tables, memory, facts about the machine."""
