"""Voice assistants that are not ours as devices of a session: what they recognise becomes its predictions."""
