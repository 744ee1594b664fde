"""What a site keeps of a run on its disk between messages."""
