"""The storefront page: a shelf to try a release with. Off unless `serving.storefront` is true."""
