"""Phrases of invented customers and employees in Portuguese, English and Spanish, by what they are about."""

from __future__ import annotations

LANGUAGES = ("pt", "en", "es")

TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "late_delivery": {
        "pt": ("A entrega atrasou muito", "O produto não chegou no prazo", "Uma semana de atraso e nenhum aviso"),
        "en": (
            "The delivery came far too late",
            "My parcel never arrived in time",
            "A week late, no notice",
        ),
        "es": ("El pedido llegó con mucho retraso", "El paquete no llegó a tiempo", "Una semana tarde y sin aviso"),
    },
    "stock_out": {
        "pt": ("O produto estava em falta depois da compra", "Fora de estoque, mas o site vendeu assim mesmo"),
        "en": ("You sold me something that was out of stock", "Sold out after I had paid"),
        "es": ("El artículo estaba agotado después de comprarlo", "Me vendieron algo sin existencias"),
    },
    "payment_failure": {
        "pt": ("O pagamento foi recusado sem motivo", "Meu cartão foi cobrado duas vezes"),
        "en": ("Payment failed twice although my card is fine", "I was charged and got an error"),
        "es": ("El pago fue rechazado sin motivo", "Me cobraron dos veces la tarjeta"),
    },
    "app_error": {
        "pt": ("O aplicativo fecha sozinho no carrinho", "O site dá erro o tempo todo"),
        "en": ("The app crashes on the basket page", "The website keeps showing an error"),
        "es": ("La aplicación se cierra sola en el carrito", "La página da error todo el tiempo"),
    },
    "long_wait": {
        "pt": ("Ninguém responde meus e-mails há dias", "Atendimento demorado, esperei dois dias"),
        "en": ("Nobody answers my messages for days", "Customer service took two days to reply"),
        "es": ("Nadie responde mis mensajes desde hace días", "El servicio tardó dos días en contestar"),
    },
    "repeat_contact": {
        "pt": ("Tive que explicar o mesmo problema de novo", "O atendimento disse que estava resolvido e não estava"),
        "en": ("I had to explain the same problem again", "Customer service closed it although nothing was solved"),
        "es": ("Tuve que explicar el mismo problema otra vez", "Dijeron que estaba resuelto y no era verdad"),
    },
    "return": {
        "pt": ("Quero devolver o produto e receber o reembolso", "Ainda não recebi o reembolso da devolução"),
        "en": ("How do I send it back and get a refund", "I am still waiting for my refund"),
        "es": ("Quiero devolver el producto y el reembolso", "Sigo esperando el reembolso de la devolución"),
    },
    "legal": {
        "pt": ("Vou abrir uma reclamação no Procon", "Meu advogado vai entrar em contato"),
        "en": ("I will go to small claims court", "My lawyer will contact you about this"),
        "es": ("Voy a hablar con mi abogado", "Presentaré una reclamación con mi abogado"),
    },
    "question": {
        "pt": ("Como altero o endereço do meu pedido?", "Onde encontro a nota fiscal?"),
        "en": ("How do I change the address of my order?", "Where do I find the invoice?"),
        "es": ("¿Cómo cambio la dirección de mi pedido?", "¿Dónde encuentro la factura?"),
    },
    "content": {
        "pt": (
            "Chegou antes do prazo, muito bom",
            "Produto de ótima qualidade, recomendo",
            "Vou comprar de novo",
        ),
        "en": ("Arrived early and well packed", "Great quality, I recommend it", "All fine, will order again"),
        "es": ("Llegó antes de lo previsto, muy bien", "Muy buena calidad, lo recomiendo", "Todo perfecto, repetiré"),
    },
    "indifferent": {
        "pt": ("Poderia ser melhor", "Nada de especial"),
        "en": ("Could be better", "Nothing special"),
        "es": ("Podría ser mejor", "Nada especial"),
    },
}
"""Topic → language → phrases."""

CONTACT_NOTES: dict[str, tuple[str, ...]] = {
    "pt": ("Meu e-mail é {email}.", "Me liguem no {phone}.", "O cartão era {card}."),
    "en": ("My e-mail is {email}.", "Call me at {phone}.", "The card was {card}."),
    "es": ("Mi correo es {email}.", "Llámenme al {phone}.", "La tarjeta era {card}."),
}
"""What careless customers add to a text; the values are invented when an event is made."""

FLAG_TEXTS: dict[str, tuple[str, ...]] = {
    "red_flag": (
        "Carrier leaves parcels at the wrong depot every Friday, delivery dates can't be kept",
        "Shop shows lamps as available that are out of stock",
        "New agents answer without the return training and customers call again",
        "Card payments fail when the customer comes from the app",
        "Complaint letters lie in the general inbox for days, a lawyer asked again",
    ),
    "idea": (
        "Send the tracking link by chat as well",
        "Offer a substitute when an item is sold out",
        "Show the refund date on the return label",
    ),
    "praise": (
        "The night shift packed every delivery before the storm",
        "A customer thanked our support for calling back",
    ),
}
"""Flag kind → what employees wrote."""
