"""Planning, resuming and closing a run of up to a billion images, in a store that is made up."""
