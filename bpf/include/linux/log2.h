/* helpers.h includes it for its own log2 helpers' sake and uses nothing of it. */
