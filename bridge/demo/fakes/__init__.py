"""Strict stand-ins for the platforms and HubSpot's API, for the demo and the tests. Loopback only."""
