"""Keep contact data in messaging platforms equal to what the CRM says."""

__version__ = "0.1.0"
