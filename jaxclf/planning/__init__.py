"""What a run needs on devices that are not here: by arithmetic, and by the compiler."""
