"""What happens to rows on the way: DataFrame in, DataFrame out."""
