"""Work with many requests: messages of a queue, files of prompts, items of a Distributed Map."""
