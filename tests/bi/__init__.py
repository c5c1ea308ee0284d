"""What is tried with real BI clients, in environments of their own."""
