"""A whole run: its config and settings, its loop, its folder.

How one step is made stands in `optim`. Begin with `finetune`.
"""
