"""Pure rules (decode, redact, tag, measure, fold) and the thin Beam transforms around them."""
