"""Many runs that differ in a few values: which to try, what came of each, which is best."""
