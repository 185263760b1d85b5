"""The page of `prdp watch`: runs as they go on, served to a browser on this machine."""
