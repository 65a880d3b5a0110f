"""The Lambda function: any event in, GPT-2's text out, in the shape the event's source expects."""
