"""Reports of finished runs as HTML files without external resources: one run in detail, or several compared."""
