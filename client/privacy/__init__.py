"""What may leave: approvals, gate, release rules, small groups, audit log."""
