"""Everything that runs at the coordinator: it never sees a patient's row."""
