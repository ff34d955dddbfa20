"""From records to facts to words."""
