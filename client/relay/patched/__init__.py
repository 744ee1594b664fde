"""The one place that replaces private names of Flower."""
