"""What a hospital shows the coordinator: Flower's SuperNode and SuperExec, kept running and made quick."""
