"""What a run did, as a page to look at and as a card for the model."""
