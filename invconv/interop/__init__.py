"""The layers inside other libraries, one module each; the library comes with the extra of the module's name."""
