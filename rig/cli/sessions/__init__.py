"""Commands about sessions: plans, runs, reports, the demo."""
