"""What the gateways of a site share by their object store: objects, and what each has learnt."""
