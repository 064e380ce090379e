"""From simulation to session and back: the plan worth a session, and the gap between what both say."""
