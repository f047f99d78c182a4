"""R@1, R@5 and R@10 between images and texts."""
