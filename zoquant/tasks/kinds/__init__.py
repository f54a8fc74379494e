"""The kinds of tasks: classification, multiple choice, generation, masked words, plain text and chats."""
