"""What is going on: the state of a run from its journal, exporters, watch, alerts."""
