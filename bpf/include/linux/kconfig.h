/* BCC's first `-include`; finding it is also how BCC recognises a kernel tree. Nothing is configured here: options arrive as -D. */
