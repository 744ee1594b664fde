"""A site's local web application: what runs, what is asked for, what left, and approval."""
