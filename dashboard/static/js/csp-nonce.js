// Bokeh adds <style> elements. The page's policy lets in only those that carry its nonce, so they are given it.
(() => {
  const { nonce } = document.currentScript.dataset;
  const create = document.createElement.bind(document);
  document.createElement = (name, options) => {
    const element = create(name, options);
    if (name === "style") element.nonce = nonce;
    return element;
  };
})();
