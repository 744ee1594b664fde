"""Who belongs: the coordinator's kit, records of sites, certificates, Flower's nodes."""
