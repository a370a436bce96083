/* helpers.h includes it for packet filters, which are not loaded here. */
