"""A local web page that applies a loaded model to images that are dropped on it (`dcal demo`, `LoadedModel.demo`)."""
