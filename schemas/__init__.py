"""What flows and what governs: event contracts, record types, schema registry, governance."""
