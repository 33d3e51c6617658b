"""Where rows come from: a file per source, DataFrame out."""
