"""The promises of the node, proven from outside: real senders, a real PACS, foreign readers and validators."""
