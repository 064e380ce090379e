"""Commands about models: data, training, export, parity, profile, bundles, the zoo."""
