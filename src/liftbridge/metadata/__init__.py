"""What the cluster agrees on: operations and the state machine that applies them, pure."""
