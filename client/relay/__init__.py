"""The hospital's link to the coordinator: Flower's SuperNode and SuperExec, supervised and sped up."""
