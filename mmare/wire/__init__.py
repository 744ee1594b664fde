"""What travels, by wire or by people: messages, tensors, sharing, joining."""
