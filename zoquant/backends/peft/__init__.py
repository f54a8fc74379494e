"""Adapters of peft: views of their live parameters, and of their folders."""
