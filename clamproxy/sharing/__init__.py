"""What the processes of a site share: leases for work that one of them does, and what each has learnt."""
