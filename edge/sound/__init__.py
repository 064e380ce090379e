"""Where the samples come from: microphones, streams and the memory of what was heard."""
