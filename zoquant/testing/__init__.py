"""The conformance kit: every law of zoquant, checked on anyone's backend or format."""
