"""Routes of the service, a module for each part of the API."""
