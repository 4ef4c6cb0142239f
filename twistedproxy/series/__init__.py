"""What is known of a series: its instances, and how they belong together. Pure: metadata in, values out."""
