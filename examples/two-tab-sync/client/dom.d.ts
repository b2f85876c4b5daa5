// The names of the browser, for as long as the client is checked together with everything else.
/// <reference lib="dom" />
/// <reference lib="dom.iterable" />
