"""The storefront page: a demo shop for trying out a release. Off unless `serving.storefront` is true."""
