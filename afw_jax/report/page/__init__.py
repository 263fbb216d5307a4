"""The report as one HTML file with a viewer of the volumes, which needs no network and no server."""
